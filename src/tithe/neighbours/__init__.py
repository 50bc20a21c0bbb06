"""Prompts as vectors, their nearest neighbours, and clusters of them."""

from tithe.neighbours.clusters import Clusters, kmeans
from tithe.neighbours.search import Neighbours, nearest

__all__ = ["Clusters", "Neighbours", "kmeans", "nearest"]
