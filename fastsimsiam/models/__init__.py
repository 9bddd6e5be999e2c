"""Networks: backbones, heads, and layers that compute the same faster."""
