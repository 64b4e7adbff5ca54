"""Images that are copies of each other: candidates, their check on pixels, edges and groups."""

from stages.dedup.groups import Groups
from stages.dedup.near_duplicates import NearDuplicates

__all__ = ["Groups", "NearDuplicates"]
