"""What is like what: prompts as vectors, nearest neighbours, clusters."""

from .kmeans import Clusters, kmeans
from .search import Neighbours, nearest

__all__ = ["Clusters", "Neighbours", "kmeans", "nearest"]
