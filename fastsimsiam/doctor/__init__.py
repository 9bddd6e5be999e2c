"""What this machine can do, what holds it back, and how long a recipe will take on it."""
