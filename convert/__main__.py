"""`python -m convert`, in a clone and where the wheel is installed; `und3rstand-convert` is the same command."""

from und3rstand_jax.commands.convert import program

if __name__ == "__main__":
    program()
