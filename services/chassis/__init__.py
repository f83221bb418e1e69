"""What every service is bolted to: settings, server, edge, access, stores. Knows no word of identity, token or rbac."""
