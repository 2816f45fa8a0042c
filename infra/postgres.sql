-- One database for each that keeps something, as `make up` makes them with SFD_DATABASE_URL.
CREATE DATABASE sfd_mlflow;
CREATE DATABASE sfd_mlflow_auth;
CREATE DATABASE sfd_prefect;
