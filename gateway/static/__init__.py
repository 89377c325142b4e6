"""The library for applications, as `clients/javascript` builds it, and how it is served."""
