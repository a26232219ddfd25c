"""`python -m convert`, in a clone or with the wheel installed; `und3rstand-convert` is the same command."""

from und3rstand_jax.commands.convert import program

if __name__ == "__main__":
    program()
