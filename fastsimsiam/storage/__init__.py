"""Where samples lie. Storage knows counts, labels and sizes; it decodes no pixels."""
