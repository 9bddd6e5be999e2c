"""The machine and the operating system; knows no image and no network."""
