"""The door to `und3rstand_jax.commands.convert`: `python -m convert`. The library never imports it."""
