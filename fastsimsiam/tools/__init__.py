"""Commands that neither train nor evaluate, a file each."""
