"""The tools behind the commands pack, views, embed and export, one file each."""
