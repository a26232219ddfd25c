"""The door to `und3rstand_jax.commands.train`: `python -m train`. The library never imports it."""
