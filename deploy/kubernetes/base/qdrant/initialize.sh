#!/bin/sh
# Peer 0 begins a cluster, the others join it; a peer that knows its cluster passes over both.
first=http://qdrant-0.qdrant-peers:6335
case "$HOSTNAME" in
    *-0) exec ./entrypoint.sh --uri "$first" ;;
    *) exec ./entrypoint.sh --bootstrap "$first" --uri "http://$HOSTNAME.qdrant-peers:6335" ;;
esac
