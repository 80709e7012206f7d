"""The machine that operators run on: storages with reference counts, and the scratch memory of the framework's
libraries.
"""
