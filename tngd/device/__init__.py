"""Device: the analog device in torch, exact at any time: process, array, tiles."""
