"""Train and evaluate a model on several selections, and report which beat a random one."""
