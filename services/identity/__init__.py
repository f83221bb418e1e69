"""The identity context: accounts, logins, OAuth clients, tenants, and the audit log as it is read."""
