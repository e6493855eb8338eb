"""Training by recipe.

`torchswat.training.recipe` says what a run is, `torchswat.training.loop` runs it:

>>> from torchswat.training.loop import train
>>> from torchswat.training.recipe import load_recipe
>>> recipe = load_recipe("digits-demo", ["optimizer.epochs=1", "optimizer.milestones=[]"])
>>> import tempfile
>>> summary = train(recipe, tempfile.mkdtemp())
>>> summary.best.pruned == summary.best.sparse
True
"""
