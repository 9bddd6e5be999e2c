"""The photometric part of a view, batched, on the device, the same for all loaders."""
