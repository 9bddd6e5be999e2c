"""BatchNorm with its ReLU and residual addition, moving few bytes: a variant of the step."""
