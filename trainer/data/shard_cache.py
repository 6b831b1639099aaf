"""The node's cache of shards is in the data engine; its names can be imported from here, too."""

from dataengine.schedule.shard_cache import ShardCache, cache_floor

__all__ = ["ShardCache", "cache_floor"]
