"""Machines of EC2 for Ray's autoscaler: spot while there is any, else the same machine at its full price.

Ray itself asks again and again for a machine that EC2 refuses, and for no other: only one that came and never joined
counts against its pool. So the second try is made here. The file lies on the head, and imports Ray and nothing else.
"""

from __future__ import annotations

import logging
from typing import Any

from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException

NO_SPOT = frozenset({"InsufficientInstanceCapacity", "MaxSpotInstanceCountExceeded", "SpotMaxPriceTooLow"})

logger = logging.getLogger(__name__)


class SpotFirst(AWSNodeProvider):
    """Ray's provider for AWS, but for what it does when there is no spot machine."""

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        """Start up to `count` machines, all of one market.

        Returns:
            Instances by id.

        Raises:
            NodeLaunchException: EC2 refuses, and for another reason than that spot is short.
        """
        try:
            started: dict[str, Any] = super().create_node(node_config, tags, count)
        except NodeLaunchException as refused:
            if "InstanceMarketOptions" not in node_config or refused.category not in NO_SPOT:
                raise
            logger.warning("no spot %s (%s): on-demand instead", node_config["InstanceType"], refused.category)
            full_price = {name: value for name, value in node_config.items() if name != "InstanceMarketOptions"}
            started = super().create_node(full_price, tags, count)
        return started
