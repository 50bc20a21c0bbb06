"""What is like what: prompts as vectors, nearest neighbours, clusters."""

from tithe.neighbours.found import Neighbours
from tithe.neighbours.kmeans import Clusters, kmeans
from tithe.neighbours.search import nearest

__all__ = ["Clusters", "Neighbours", "kmeans", "nearest"]
