"""Where encoded images are stored: counts, labels, sizes and bytes. Nothing here decodes pixels."""
