"""Who feeds each weight: a model read as a graph, in execution order."""

from mpelu.graph.capture import Example
from mpelu.graph.nodes import CARRIERS, KINDS, Graph, Node, UnknownNodeError
from mpelu.graph.reading import read
from mpelu.graph.running import Visit, run

__all__ = ["CARRIERS", "KINDS", "Example", "Graph", "Node", "UnknownNodeError", "Visit", "read", "run"]
