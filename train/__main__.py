"""`python -m train`, in a clone and where the wheel is installed; `und3rstand-train` is the same command."""

from und3rstand_jax.commands.train import program

if __name__ == "__main__":
    program()
