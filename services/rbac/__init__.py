"""rbac: who holds which role, where, until when; and so, who may do what."""
