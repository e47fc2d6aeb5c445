"""Tools of the developers that need environments of their own; no command of the house and no check runs them."""
