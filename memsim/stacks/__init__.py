"""Software stacks: versions of the framework, and in what they differ. Imports nothing of memsim."""
