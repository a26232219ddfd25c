"""The entry point `python -m train` of `und3rstand_jax.commands.train`. The library never imports it."""
