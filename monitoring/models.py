"""Who is watched until when, and by whom; and the settings an admin may change."""
