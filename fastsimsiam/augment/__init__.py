"""The photometric part of views: batched, on the device, the same code for all loaders."""
