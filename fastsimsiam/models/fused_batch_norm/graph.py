"""Kinds of nodes of a traced network."""

from torch import fx, nn

_Types = tuple[type[nn.Module], ...]
_MODULES: tuple[tuple[str, _Types], ...] = (
    ("product", (nn.Conv2d, nn.Linear)),
    ("norm", (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)),
    ("relu", (nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish)),
    ("pool", (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)),
)


def node_kind(node: fx.Node, traced: fx.GraphModule) -> str | None:
    """The kind of a node: `product`, `norm`, `relu`, `pool`, `add`, or None for all others."""
    if node.op == "call_module":
        module = traced.get_submodule(str(node.target))
        for kind, types in _MODULES:
            if isinstance(module, types):
                return kind
        return None
    if node.op in ("call_function", "call_method"):
        name = getattr(node.target, "__name__", str(node.target))
        return {"add": "add", "iadd": "add", "relu": "relu", "relu_": "relu"}.get(name)
    return None
