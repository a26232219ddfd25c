"""Procedural rooms, rendered on the device by ray casting: pairs with exact geometry and nothing to download."""
