"""Train and evaluate by several selections, and say which beat a random one."""
