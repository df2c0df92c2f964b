"""`pagewire top`: what routers do now, on a terminal."""
