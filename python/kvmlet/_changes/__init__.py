"""Changes that a program made in memory are saved, then made on the host.

A change set is a row of entries, each with the bytes of its file. It is saved first, as a whole, in
a private directory of the tree (`saved`), and then moved into place (`apply`), which can be
repeated. All work on the host's tree goes through directory descriptors (`host_tree`).
"""
