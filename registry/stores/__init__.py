"""The streams and buckets of the product: made when they are needed, grown, and those of earlier versions retired."""
