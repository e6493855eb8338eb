"""One page out of files: what ``torchswat reproduce``, ``train`` and ``bench`` have left behind."""
