"""`python -m und3rstand_jax`; `und3rstand-jax` is the same command."""

from und3rstand_jax.commands.run import program

if __name__ == "__main__":
    program()
