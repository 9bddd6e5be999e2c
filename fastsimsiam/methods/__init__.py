"""Self-supervised methods: views in, loss out. The contract is in base.py."""
