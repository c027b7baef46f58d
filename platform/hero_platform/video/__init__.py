"""From films to features: found, decoded in processes that may be killed, encoded in Ray Data actors."""
