"""`python -m delt.batch`: rewrite the parameters cell of the experiment notebook from the configuration's fields."""

from delt.batch.notebook import refresh, template

if __name__ == "__main__":
    refresh(template())
