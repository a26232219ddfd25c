"""Procedural rooms, ray-cast on the device: pairs with exact geometry and nothing to download."""
