"""Recognises probes by the names and shapes of their tensors alone; `recognise` is the entry point."""

from und3rstand_jax.convert.probes.recognise.unknown_names import recognise

__all__ = ["recognise"]
