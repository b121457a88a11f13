"""What can be promised of a model on data like that at hand, and with what confidence."""

from taskprune.promise.over_images import OverImages
from taskprune.promise.per_sample import PerSample
from taskprune.promise.promising import Promise, TaskPromise

__all__ = ["OverImages", "PerSample", "Promise", "TaskPromise"]
