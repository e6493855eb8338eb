"""The paper's figures and claims, each made again by ``torchswat reproduce``."""
