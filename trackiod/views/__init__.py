"""What readers are shown: pure decisions over what the store holds. A merge is a view and can be undone."""
