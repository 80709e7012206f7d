"""The Run: what a person says about a training job, checked key by key."""
