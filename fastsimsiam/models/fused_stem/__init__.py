"""The first layers of a ResNet, moving few bytes: a variant of the step."""
